"""How good a result is: pictures, poses, depth."""
