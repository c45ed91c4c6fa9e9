//! The `objective` room.
