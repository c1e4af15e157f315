"""A user's own data: files, folders and hub data sets of pairs or of chats, split if need be."""
