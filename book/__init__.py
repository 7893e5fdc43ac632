"""The annotated paper: `python -m book` writes each file's text, code and pictures as pages."""
