"""Networks: geometry transformers and view synthesis, one file each over shared blocks. They map tensors to tensors."""
