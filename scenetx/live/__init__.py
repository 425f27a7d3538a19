"""Live: pictures come in one at a time (camera, video, stream) and leave as camera poses, in a map's frame."""
