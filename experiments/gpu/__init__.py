"""The full-size cells of the papers, run side by side on one accelerator within given minutes."""
