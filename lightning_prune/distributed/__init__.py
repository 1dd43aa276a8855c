"""Several processes agree, or fail together; a weight that is spread over them."""
