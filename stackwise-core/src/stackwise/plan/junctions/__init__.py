"""Where parts meet: specs are joined until sizes, names and dtypes agree, or a sentence says why not."""
