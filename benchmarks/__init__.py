"""Programs that measure. Ratios of one run count; the machine is printed beside them."""
