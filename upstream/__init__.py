"""What Triton sees: the inference waist, bindings, the HTTP and gRPC clients, the pool of servers."""
