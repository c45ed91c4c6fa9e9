//! The `rows` room.
