"""Reading of experts: shards of a checkpoint, storage, reader threads, host memory."""
