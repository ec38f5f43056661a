//! libav, behind safe types: the only place with `unsafe`.
