"""What `experiments.bench` is made of: contestants as processes, their work, and the table and figures of it all."""
