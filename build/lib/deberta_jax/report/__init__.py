"""What draws and tabulates finished runs."""
