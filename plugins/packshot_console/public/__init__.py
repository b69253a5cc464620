"""What answers without a login: the channels' images and feeds, and contact sheets by signed links."""
