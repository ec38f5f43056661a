//! Amounts of items, as people read them.

/// `1 item`, `2 items`.
pub fn counted(items: u64) -> String {
    let noun = if items == 1 { "item" } else { "items" };
    format!("{items} {noun}")
}

/// What was done to so many: `1 item was lost`, `2 items were lost`.
pub fn were(items: u64, what: &str) -> String {
    let verb = if items == 1 { "was" } else { "were" };
    format!("{} {verb} {what}", counted(items))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!((counted(0).as_str(), were(1, "lost").as_str()), ("0 items", "1 item was lost"));
        assert_eq!(were(2, "rejected"), "2 items were rejected");
    }
}
