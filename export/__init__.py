"""Command-line tools around an exported model; installed, the modules of pfpn_tf.export."""
