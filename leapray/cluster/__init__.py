"""Starting or joining Ray, what its nodes can hold, and every use of a private interface of Ray. Importing the package imports no Ray."""
