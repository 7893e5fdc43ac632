"""What the paper does not speak of: files, formats, flags, pictures of progress."""
