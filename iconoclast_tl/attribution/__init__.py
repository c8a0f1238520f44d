"""Attribution of a direction or a behaviour to embedding, heads and MLPs: one method a file, one type of result."""
