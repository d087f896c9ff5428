"""From records to tables and pictures. Pure: never computes, never repairs."""
