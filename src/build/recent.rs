//! The last of what a guest asked for over its network: requests that we answered, and what its rules
//! denied. A failure report shows them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// What is kept.
const KEPT: usize = 5;

/// The last requests, and how many there were.
#[derive(Debug, Default)]
pub struct Recent(Mutex<(u64, VecDeque<String>)>);

impl Recent {
    /// Keeps a line.
    pub fn add(&self, line: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, lines) = &mut *kept;
        *count += 1;
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Returns the last lines, and says how many came before them.
    pub fn lines(&self) -> Vec<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, lines) = &*kept;
        let before = count - lines.len() as u64;
        let more = (before > 0).then(|| format!("{before} more before these"));
        more.into_iter().chain(lines.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_the_others_counted() {
        let recent = Recent::default();
        assert!(recent.lines().is_empty());
        (0..KEPT + 3).for_each(|number| recent.add(number.to_string()));
        assert_eq!(recent.lines(), ["3 more before these", "3", "4", "5", "6", "7"]);
    }
}
