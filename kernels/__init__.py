"""Kernels: one public function each, a plain torch reference as the oracle."""
