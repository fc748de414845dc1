"""The implementation of `queue_system.utils`, one decorator a module."""
