"""What `tweed bench` measures, a file each, and the peers that it measures beside."""
