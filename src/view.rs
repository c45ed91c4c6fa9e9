//! Borrowed typed views.
