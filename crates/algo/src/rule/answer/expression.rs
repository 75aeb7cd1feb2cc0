//! Expressions, and whether two are the same function of their variables.
//!
//! Both are evaluated at the same few points, complex and with 31 digits; variables stand for
//! numbers that no answer has. Two expressions that agree there to 24 digits are equal: exact for
//! rational numbers and functions, and for roots on their principal branch.

use super::double::{Complex, Double};

/// Bytes beyond which an answer is compared as text alone.
const MAX_BYTES: usize = 1 << 10;
/// Nesting beyond which it is.
const MAX_DEPTH: usize = 64;
/// Largest power that is multiplied out.
const MAX_EXPONENT: f64 = 4096.0;
/// Points at which expressions are compared, in different quadrants.
const POINTS: usize = 4;
/// Relative error of sums, products and roots.
const EXACT: f64 = 1e-24;
/// Relative error where a function of double precision was called.
const ROUGH: f64 = 1e-10;

/// What names stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// `pi`, `sqrt`, and the elementary functions are known; another name is a product of letters,
    /// a letter with a subscript one variable.
    Usual,
    /// As sympy splits them: digits within a name are factors, only `sqrt` and `ln` are functions.
    Sympy,
}

/// Is `a - b` zero wherever it is defined? False where either is no expression.
pub(super) fn same(a: &str, b: &str, names: Names) -> bool {
    if a.len() > MAX_BYTES || b.len() > MAX_BYTES {
        return false;
    }
    let differs = |point| {
        let (a, b) = (evaluate(a, names, point)?, evaluate(b, names, point)?);
        let bound = if a.rough || b.rough { ROUGH } else { EXACT };
        let size = a.size.max(b.size);
        Some((a.value - b.value).size() > bound * size)
    };
    (0..POINTS).all(|point| differs(point) == Some(false))
}

/// An expression at a point.
struct Evaluated {
    value: Complex,
    /// The largest number on the way, which rounding errors are relative to.
    size: f64,
    rough: bool,
}

fn evaluate(text: &str, names: Names, point: usize) -> Option<Evaluated> {
    let mut reader =
        Reader { text, at: 0, names, point, depth: 0, size: 0.0, rough: false, name_end: 0 };
    let value = reader.sum()?;
    let whole = reader.at == text.len() && value.is_finite() && reader.size.is_finite();
    whole.then_some(Evaluated { value, size: reader.size, rough: reader.rough })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    names: Names,
    point: usize,
    depth: usize,
    size: f64,
    rough: bool,
    /// Where a name that is being split ends.
    name_end: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn noted(&mut self, value: Complex) -> Complex {
        self.size = self.size.max(value.size());
        value
    }

    fn sum(&mut self) -> Option<Complex> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut total = self.product()?;
        loop {
            if self.eat("+") {
                total = total + self.product()?;
            } else if self.eat("-") {
                total = total - self.product()?;
            } else {
                self.depth -= 1;
                return Some(self.noted(total));
            }
        }
    }

    fn product(&mut self) -> Option<Complex> {
        let mut total = self.signed()?;
        loop {
            let begins_factor = |c: char| c.is_alphanumeric() || matches!(c, '(' | '.' | '√' | '_');
            if self.rest().starts_with("**") {
                return None;
            } else if self.eat("*") {
                total = total * self.signed()?;
            } else if self.eat("/") {
                let divisor = self.signed()?;
                if divisor.size() == 0.0 {
                    return None;
                }
                total = total.over(divisor);
            } else if self.rest().starts_with(begins_factor) {
                total = total * self.power()?;
            } else {
                return Some(self.noted(total));
            }
        }
    }

    fn signed(&mut self) -> Option<Complex> {
        let mut negative = false;
        loop {
            if self.eat("-") {
                negative = !negative;
            } else if !self.eat("+") {
                let value = self.power()?;
                return Some(if negative { -value } else { value });
            }
        }
    }

    fn power(&mut self) -> Option<Complex> {
        let base = self.atom()?;
        if !self.eat("^") && !self.eat("**") {
            return Some(self.noted(base));
        }
        self.depth += 1;
        let exponent = if self.depth > MAX_DEPTH { None } else { self.signed() }?;
        self.depth -= 1;
        let value = self.raised(base, exponent)?;
        Some(self.noted(value))
    }

    fn raised(&mut self, base: Complex, exponent: Complex) -> Option<Complex> {
        let (n, im) = (exponent.re.approximate(), exponent.im.approximate());
        let exact = (exponent.re - Double::new(n)).approximate() == 0.0 && im == 0.0;
        if exact && n.abs() <= MAX_EXPONENT && n.fract() == 0.0 {
            return Some(base.power(n as i32));
        }
        if self.names == Names::Sympy && im == 0.0 {
            return None;
        }
        if exact && n.abs() <= MAX_EXPONENT && (2.0 * n).fract() == 0.0 {
            return Some(base.root().power((2.0 * n) as i32));
        }
        if base.size() == 0.0 {
            return None;
        }
        self.rough = true;
        Some(exponential(exponent * logarithm(base)))
    }

    fn atom(&mut self) -> Option<Complex> {
        if self.at < self.name_end {
            return self.name_part();
        }
        if self.eat("(") {
            let inner = self.sum()?;
            return self.eat(")").then_some(inner);
        }
        if self.names == Names::Usual && self.eat("√") {
            return Some(self.atom()?.root());
        }
        match self.rest().chars().next()? {
            c if c.is_ascii_digit() || c == '.' => self.decimal(),
            c if c.is_alphabetic() => self.name(),
            _ => None,
        }
    }

    /// Digits with at most one point, and an exponent.
    fn decimal(&mut self) -> Option<Complex> {
        let rest = self.rest();
        let whole = leading_digits(rest);
        let mut part = 0;
        let mut length = whole;
        if rest[whole..].starts_with('.') {
            part = leading_digits(&rest[whole + 1..]);
            length += 1 + part;
        }
        if whole + part == 0 {
            return None;
        }
        let mut value = Double::ZERO;
        for digit in rest[..length].bytes().filter(u8::is_ascii_digit) {
            value = value * Double::new(10.0) + Double::new(f64::from(digit - b'0'));
        }
        let mut scale = -(part as i32);
        let tail = &rest[length..];
        if tail.starts_with(['e', 'E']) {
            let sign = usize::from(tail[1..].starts_with(['+', '-']));
            let count = leading_digits(&tail[1 + sign..]);
            if (1..=3).contains(&count) {
                scale += tail[1..1 + sign + count].parse::<i32>().ok()?;
                length += 1 + sign + count;
            }
        }
        self.at += length;
        let ten = Complex::real(Double::new(10.0));
        let value = Complex::real(value);
        let value =
            if scale < 0 { value.over(ten.power(-scale)) } else { value * ten.power(scale) };
        Some(value)
    }

    /// A function with its argument, a constant, or variables.
    fn name(&mut self) -> Option<Complex> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = &rest[..end];
        if name == "pi" || name == "π" {
            self.at += end;
            return Some(Complex::real(Double::PI));
        }
        match self.names {
            Names::Sympy => self.sympy_name(name),
            Names::Usual => self.usual_name(name),
        }
    }

    /// Only a whole name is a function, and only before a parenthesis; other names are split, so
    /// that a power belongs to their last letter.
    fn sympy_name(&mut self, name: &str) -> Option<Complex> {
        let called = self.rest()[name.len()..].starts_with('(');
        if called && matches!(name, "sqrt" | "ln") {
            self.at += name.len();
            let argument = self.atom()?;
            return self.call(name, argument);
        }
        if matches!(name, "mu" | "nu" | "xi") || name.contains('_') {
            self.at += name.len();
            return Some(self.variable(name));
        }
        self.name_end = self.at + name.len();
        self.name_part()
    }

    /// A letter or the digits that come next within a name.
    fn name_part(&mut self) -> Option<Complex> {
        let name = &self.text[self.at..self.name_end];
        let digits = leading_digits(name);
        if digits > 0 {
            self.at += digits;
            return Some(Complex::real(Double::new(name[..digits].parse().ok()?)));
        }
        let letter = name.chars().next()?.len_utf8();
        self.at += letter;
        Some(self.variable(&name[..letter]))
    }

    /// A known function at the start of a name, else one letter with its subscript.
    fn usual_name(&mut self, name: &str) -> Option<Complex> {
        const FUNCTIONS: [&str; 12] = [
            "sqrt", "arcsin", "arccos", "arctan", "sin", "cos", "tan", "ln", "log", "exp", "abs",
            "cbrt",
        ];
        if let Some(function) = FUNCTIONS.iter().find(|function| name.starts_with(*function)) {
            self.at += function.len();
            self.depth += 1;
            let argument = if self.depth > MAX_DEPTH { None } else { self.power() }?;
            self.depth -= 1;
            return self.call(function, argument);
        }
        if name.starts_with("pi") {
            self.at += 2;
            return Some(Complex::real(Double::PI));
        }
        let letter = name.chars().next()?.len_utf8();
        let tail = &name[letter..];
        let subscript = if let Some(index) = tail.strip_prefix('_') {
            index.find(|c: char| !c.is_alphanumeric()).map_or(tail.len(), |end| end + 1)
        } else {
            leading_digits(tail)
        };
        self.at += letter + subscript;
        let name = &name[..letter + subscript];
        match name {
            "i" => Some(Complex::from_parts(0.0, 1.0)),
            "e" => {
                self.rough = true;
                Some(Complex::from_parts(std::f64::consts::E, 0.0))
            }
            "π" => Some(Complex::real(Double::PI)),
            _ => Some(self.variable(name)),
        }
    }

    fn call(&mut self, function: &str, argument: Complex) -> Option<Complex> {
        if function == "sqrt" {
            return Some(argument.root());
        }
        self.rough = true;
        let half = Complex::from_parts(0.5, 0.0);
        let i = Complex::from_parts(0.0, 1.0);
        let wave = |sign: f64| exponential(argument * Complex::from_parts(0.0, sign));
        let sine = (wave(1.0) - wave(-1.0)).over(i + i);
        let cosine = (wave(1.0) + wave(-1.0)) * half;
        let real = argument.im.approximate() == 0.0;
        let re = argument.re.approximate();
        match function {
            "sin" => Some(sine),
            "cos" => Some(cosine),
            "tan" => Some(sine.over(cosine)),
            "ln" | "log" if argument.size() > 0.0 => Some(logarithm(argument)),
            "exp" => Some(exponential(argument)),
            "abs" => Some(Complex::from_parts(
                argument.re.approximate().hypot(argument.im.approximate()),
                0.0,
            )),
            "cbrt" if real => Some(Complex::from_parts(re.cbrt(), 0.0)),
            "arcsin" if real => Some(Complex::from_parts(re.asin(), 0.0)),
            "arccos" if real => Some(Complex::from_parts(re.acos(), 0.0)),
            "arctan" if real => Some(Complex::from_parts(re.atan(), 0.0)),
            _ => None,
        }
    }

    /// A number that hangs on the name and the point: its size is from 1/2 to 2, its angle in the
    /// point's quadrant.
    fn variable(&self, name: &str) -> Complex {
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ self.point as u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 29;
        let share = |bits: u64| (bits & 0xffff) as f64 / 65536.0;
        let size = 0.5 + 1.5 * share(hash);
        let angle =
            (self.point as f64 + 0.1 + 0.8 * share(hash >> 20)) * std::f64::consts::FRAC_PI_2;
        Complex::from_parts(size * angle.cos(), size * angle.sin())
    }
}

/// Bytes of the ASCII digits at the start.
fn leading_digits(text: &str) -> usize {
    text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len()
}

fn exponential(z: Complex) -> Complex {
    let (size, angle) = (z.re.approximate().exp(), z.im.approximate());
    Complex::from_parts(size * angle.cos(), size * angle.sin())
}

fn logarithm(z: Complex) -> Complex {
    let (re, im) = (z.re.approximate(), z.im.approximate());
    Complex::from_parts(re.hypot(im).ln(), im.atan2(re))
}
