//! Cleaning a title until it no longer changes, in time linear in its length.

use super::characters::{digit, is_space};
use super::text::{collapse_spaces, is_delimiter, is_marker};

/// Takes bracketed parts, repeated spaces, marks and quotes off a title until nothing changes:
/// `"**Alien** (director's (final) cut)"` becomes `Alien`.
///
/// A pass is [`without_parentheses`](super::text::without_parentheses),
/// [`collapse_spaces`], [`without_format`](super::text::without_format),
/// [`without_quotes`](super::text::without_quotes); passes repeat until one changes nothing (the
/// loop of reference `process_rec_raw`). A pass over the text each time would take quadratic time
/// for a thousand nested brackets. Here a pass costs what it removes: brackets are paired once (a
/// pair goes in the pass of its height, and no other step touches either bracket before that), and
/// the rest works on the ends.
#[must_use]
pub fn clean_title(title: &str) -> String {
    let mut chain = Chain::of(&collapse_spaces(title));
    let heights = chain.pairs_by_height();
    let mut pass = 0;
    while chain.pass(heights.get(pass).map_or(&[], Vec::as_slice)) {
        pass += 1;
    }
    chain.text()
}

/// The characters left, linked both ways. Node 0 stands before the first and the last node behind
/// the last character; both hold NUL, which belongs to no class.
struct Chain {
    chars: Vec<char>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// The front node when digits were last read there, and the last of the digits.
    digits: (usize, usize),
}

impl Chain {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = "\0".chars().chain(text.chars()).chain("\0".chars()).collect();
        let n = chars.len();
        Self {
            next: (1..=n).collect(),
            prev: (0..n).map(|at| at.saturating_sub(1)).collect(),
            chars,
            digits: (0, 0),
        }
    }

    fn end(&self) -> usize {
        self.chars.len() - 1
    }

    fn front(&self) -> usize {
        self.next[0]
    }

    fn back(&self) -> usize {
        self.prev[self.end()]
    }

    /// Takes out the nodes `first..=last` of the chain.
    fn cut(&mut self, first: usize, last: usize) {
        let (before, after) = (self.prev[first], self.next[last]);
        self.next[before] = after;
        self.prev[after] = before;
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut at = self.front();
        while at != self.end() {
            text.push(self.chars[at]);
            at = self.next[at];
        }
        text
    }

    /// Matching brackets, those without brackets inside first, then those around only such, and so
    /// on.
    fn pairs_by_height(&self) -> Vec<Vec<(usize, usize)>> {
        let mut heights: Vec<Vec<(usize, usize)>> = Vec::new();
        // Open brackets, with the height of the highest pair inside each.
        let mut open: Vec<(usize, usize)> = Vec::new();
        for (at, c) in self.chars.iter().enumerate() {
            match c {
                '(' => open.push((at, 0)),
                ')' => {
                    let Some((from, inside)) = open.pop() else { continue };
                    if heights.len() <= inside {
                        heights.push(Vec::new());
                    }
                    heights[inside].push((from, at));
                    if let Some((_, highest)) = open.last_mut() {
                        *highest = (*highest).max(inside + 1);
                    }
                }
                _ => {}
            }
        }
        heights
    }

    /// One pass; false if it changed nothing.
    fn pass(&mut self, pairs: &[(usize, usize)]) -> bool {
        let mut changed = self.strip();
        for (open, close) in pairs {
            let (before, after) = (self.prev[*open], self.next[*close]);
            self.cut(*open, *close);
            if self.chars[before] == ' ' && self.chars[after] == ' ' {
                self.cut(after, after);
            }
            changed = true;
        }
        changed |= self.strip();
        while self.strip_format() {
            changed = true;
        }
        changed | self.unquote()
    }

    fn trim_front(&mut self, class: fn(char) -> bool) -> bool {
        let from = self.front();
        while class(self.chars[self.front()]) {
            self.cut(self.front(), self.front());
        }
        self.front() != from
    }

    fn trim_back(&mut self, class: fn(char) -> bool) -> bool {
        let from = self.back();
        while class(self.chars[self.back()]) {
            self.cut(self.back(), self.back());
        }
        self.back() != from
    }

    fn strip(&mut self) -> bool {
        self.trim_front(is_space) | self.trim_back(is_space)
    }

    /// One round of `without_format`; false if it changed nothing.
    fn strip_format(&mut self) -> bool {
        let mut changed = self.trim_front(is_marker) | self.strip();
        changed |= self.trim_back(is_marker) | self.strip();
        changed |= self.trim_bullet() || self.trim_number();
        changed |= self.strip();
        if self.trim_front(|c| c == '#') {
            self.trim_front(is_space);
            changed = true;
        }
        changed
    }

    /// Takes off marks at the front if a space follows them.
    fn trim_bullet(&mut self) -> bool {
        let first = self.front();
        let mut after = first;
        while is_marker(self.chars[after]) {
            after = self.next[after];
        }
        let bullet = after != first && is_space(self.chars[after]);
        if bullet {
            self.cut(first, after);
        }
        bullet
    }

    /// Takes off digits, a delimiter and a space at the front.
    fn trim_number(&mut self) -> bool {
        let first = self.front();
        let is_digit = |c: char| digit(c).is_some();
        if !is_digit(self.chars[first]) {
            return false;
        }
        // Digits read before are not read again: only what follows them may have changed.
        let mut last = if self.digits.0 == first { self.digits.1 } else { first };
        while is_digit(self.chars[self.next[last]]) {
            last = self.next[last];
        }
        self.digits = (first, last);
        let mut delimiter = self.next[last];
        if is_space(self.chars[delimiter]) {
            delimiter = self.next[delimiter];
        }
        if !is_delimiter(self.chars[delimiter]) || !is_space(self.chars[self.next[delimiter]]) {
            return false;
        }
        self.cut(first, self.next[delimiter]);
        true
    }

    fn unquote(&mut self) -> bool {
        let (first, last) = (self.front(), self.back());
        let quote = self.chars[first];
        if !matches!(quote, '"' | '\'') || self.chars[last] != quote {
            return false;
        }
        self.cut(last, last);
        if first != last {
            self.cut(first, first);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::rank::{Solution, parse_list};

    #[test]
    fn long_lists_made_to_slow_the_parser_down_do_not() {
        let n = 50_000;
        let hard = [
            "(".repeat(n) + &")".repeat(n),
            "1".repeat(n) + &" *".repeat(n),
            "\"'".repeat(n) + "x" + &"'\"".repeat(n),
            "1".repeat(n) + &"(".repeat(n) + &")".repeat(n) + ". x",
            "* _".repeat(n),
            "<solution>".repeat(n),
            "a (1 ".repeat(n),
        ];
        for text in hard {
            // A form that is quadratic takes minutes here.
            let started = Instant::now();
            let films = parse_list(&format!("x {text} (1999)"), Solution::First);
            assert_eq!(films.len(), 1);
            let _ = clean_title(&text);
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", &text[..10]);
        }
    }
}
