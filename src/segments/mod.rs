//! The `segments` room.
