use super::TextError;

/// A token with the line that it stands in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `%name`.
    Value(String),
    /// A name: letters, digits, `_`, `.`; begins with a letter or `_`.
    Word(String),
    /// A number as it is written.
    Number(String),
    /// A text in quotes.
    Text(String),
    /// Anything else.
    Sign(char),
    /// The end of the text.
    End,
}

/// Splits a text into tokens with their lines.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, usize)>, TextError> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1 };
    let mut out = Vec::new();
    loop {
        let token = lexer.next()?;
        let end = token == Token::End;
        out.push((token, lexer.line));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Token, TextError> {
        self.skip();
        let Some(&c) = self.chars.peek() else { return Ok(Token::End) };
        if c == '"' {
            return self.text().map(Token::Text);
        }
        if c == '%' {
            self.chars.next();
            if self.chars.peek() == Some(&'"') {
                return self.text().map(Token::Value);
            }
            return Ok(Token::Value(self.take(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))));
        }
        if c.is_ascii_digit() || c == '-' {
            return Ok(Token::Number(self.take(|c| c.is_ascii_alphanumeric() || "+-._".contains(c))));
        }
        if c.is_ascii_alphabetic() || c == '_' {
            return Ok(Token::Word(self.take(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')));
        }
        self.chars.next();
        Ok(Token::Sign(c))
    }

    fn skip(&mut self) {
        while let Some(&c) = self.chars.peek() {
            if c == ';' {
                while self.chars.peek().is_some_and(|&c| c != '\n') {
                    self.chars.next();
                }
            } else if c.is_whitespace() {
                self.line += usize::from(c == '\n');
                self.chars.next();
            } else {
                return;
            }
        }
    }

    fn take(&mut self, part: impl Fn(char) -> bool) -> String {
        let mut out = String::new();
        while let Some(c) = self.chars.next_if(|&c| part(c)) {
            out.push(c);
        }
        out
    }

    fn text(&mut self) -> Result<String, TextError> {
        let error = |line, problem: &str| TextError { line, problem: problem.into() };
        self.chars.next();
        let mut out = String::new();
        loop {
            match self.chars.next() {
                None => return Err(error(self.line, "a quote is not closed")),
                Some('"') => return Ok(out),
                Some('\\') => match self.chars.next() {
                    Some('n') => out.push('\n'),
                    Some('u') => {
                        let code = self.take(|c| c == '{' || c.is_ascii_hexdigit());
                        let code = u32::from_str_radix(code.trim_start_matches('{'), 16).ok().and_then(char::from_u32);
                        self.chars.next_if_eq(&'}');
                        out.push(code.ok_or_else(|| error(self.line, "an escape names no character"))?);
                    }
                    Some(c) => out.push(c),
                    None => return Err(error(self.line, "a quote is not closed")),
                },
                Some(c) => {
                    self.line += usize::from(c == '\n');
                    out.push(c);
                }
            }
        }
    }
}
