//! The boot policy: a file of devices, groups and profiles, and the decision for each device.
