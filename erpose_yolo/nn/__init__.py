"""The head, and the network that carries it."""

HEAD = "ERPoseHead"  # class name of our head: what a checkpoint's last layer, a model YAML or an export's metadata is asked for
