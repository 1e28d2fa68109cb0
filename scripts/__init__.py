"""What a checkout needs beside the gateway: setting up, and a real Triton."""
