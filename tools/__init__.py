"""Command-line tools; installed, they are the modules of pfpn_tf.tools."""
