"""The layouts of published single files: which network is which, and its configuration, read from tensors' names and shapes."""
