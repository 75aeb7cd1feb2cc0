//! LaTeX as plain text, for what stands in answers.

use plumb_domain::text::strip;

/// Nesting beyond which a text is left as it is.
const MAX_DEPTH: usize = 64;

/// What becomes of the arguments of fractions, roots and powers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Groups {
    /// They are kept together: `\frac{a}{b}` is `((a)/(b))`, `x^{10}` is `x^(10)`, `\sqrt[3]{a}`
    /// is `((a)^(1/(3)))`.
    Kept,
    /// As the Python package pylatexenc writes them: `a/b`, `x^10`, `sqrt(a)`.
    Lost,
}

/// The text without commands and groups: symbols become what answers are compared by, other
/// commands vanish and leave their arguments. `None` where nesting is too deep.
pub(super) fn plain(latex: &str, groups: Groups) -> Option<String> {
    let latex = latex.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac");
    // A blank before each fraction sets a mixed number apart.
    let latex = latex.replace("\\frac", " \\frac");
    let mut reader = Reader { text: &latex, at: 0, depth: 0, groups };
    let mut text = String::new();
    while reader.at < latex.len() {
        match reader.piece()? {
            Some(piece) => text.push_str(&piece),
            None => reader.at += 1,
        }
    }
    Some(strip(&text).to_owned())
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    groups: Groups,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// A character, a group or a command. The inner `None` stands before a closing brace and at the
    /// end.
    fn piece(&mut self) -> Option<Option<String>> {
        let Some(c) = self.rest().chars().next() else { return Some(None) };
        match c {
            '}' => Some(None),
            '{' => self.group().map(Some),
            '\\' => self.command().map(Some),
            '^' if self.groups == Groups::Kept && self.rest().starts_with("^{") => {
                self.at += 1;
                Some(Some(format!("^({})", self.group()?)))
            }
            '~' => {
                self.at += 1;
                Some(Some(" ".to_owned()))
            }
            c => {
                self.at += c.len_utf8();
                Some(Some(c.to_string()))
            }
        }
    }

    fn group(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.at += 1;
        let mut text = String::new();
        while let Some(piece) = self.piece()? {
            text.push_str(&piece);
        }
        self.at += usize::from(self.rest().starts_with('}'));
        self.depth -= 1;
        Some(text)
    }

    /// What a command takes: the next character, group or command after blanks.
    fn argument(&mut self) -> Option<String> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.depth += 1;
        let piece = if self.depth > MAX_DEPTH { None } else { self.piece() }?;
        self.depth -= 1;
        Some(piece.unwrap_or_default())
    }

    /// `[n]` before an argument.
    fn index(&mut self) -> Option<&'a str> {
        let inner = self.rest().strip_prefix('[')?;
        let end = inner.find(']').unwrap_or(inner.len());
        self.at += (end + 2).min(inner.len() + 1);
        Some(&inner[..end])
    }

    fn command(&mut self) -> Option<String> {
        self.at += 1;
        let letters = self.rest().len()
            - self.rest().trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        if letters == 0 {
            let Some(c) = self.rest().chars().next() else { return Some(String::new()) };
            self.at += c.len_utf8();
            return Some(match c {
                ',' | ';' | ':' | ' ' | '/' | '>' => " ".to_owned(),
                '!' => String::new(),
                '\\' => "\n".to_owned(),
                other => other.to_string(),
            });
        }
        let name = &self.rest()[..letters];
        self.at += letters;
        // Blanks after the name of a command belong to it.
        self.at += self.rest().len() - self.rest().trim_start().len();
        Some(match name {
            "frac" => {
                let (over, under) = (self.argument()?, self.argument()?);
                match self.groups {
                    Groups::Kept => format!("(({over})/({under}))"),
                    Groups::Lost => format!("{over}/{under}"),
                }
            }
            "sqrt" => {
                let index = self.index();
                let inner = self.argument()?;
                match index {
                    Some(index) if self.groups == Groups::Kept => {
                        format!("(({inner})^(1/({index})))")
                    }
                    _ => format!("sqrt({inner})"),
                }
            }
            "quad" | "qquad" => "  ".to_owned(),
            name => symbol(name).to_owned(),
        })
    }
}

/// What a symbol is compared as; nothing for unknown ones.
fn symbol(name: &str) -> &'static str {
    match name {
        "pi" => "pi",
        "infty" => "inf",
        "cup" => "U",
        "cap" => "∩",
        "cdot" | "times" => "*",
        "div" => "÷",
        "pm" => "±",
        "mp" => "∓",
        "circ" => "∘",
        "le" | "leq" => "≤",
        "ge" | "geq" => "≥",
        "in" => "∈",
        "emptyset" | "varnothing" => "∅",
        "ldots" | "dots" => "…",
        "cdots" => "⋯",
        "sin" => "sin",
        "cos" => "cos",
        "tan" => "tan",
        "log" => "log",
        "ln" => "ln",
        "exp" => "exp",
        "alpha" => "α",
        "beta" => "β",
        "gamma" => "γ",
        "delta" => "δ",
        "epsilon" => "ϵ",
        "theta" => "θ",
        "lambda" => "λ",
        "mu" => "μ",
        "rho" => "ρ",
        "sigma" => "σ",
        "tau" => "τ",
        "phi" => "ϕ",
        "omega" => "ω",
        "Delta" => "Δ",
        "Omega" => "Ω",
        "angle" => "∠",
        "to" | "rightarrow" => "→",
        _ => "",
    }
}
