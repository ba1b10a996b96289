"""Devices and processes: meshes, sharding, how many processes work as one."""
