//! The pool: threads that run CPU jobs for [`PoolOperator`]s.
