"""What learned eviction needs beside its policies: features, nets, files of weights. Imports no torch."""
