"""What an export leaves behind: files, manifest, and the value that names them."""
