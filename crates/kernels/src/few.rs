//! Short lists that need no allocation: a run on warm memory makes none.

use std::ops::{Deref, DerefMut};

/// A list that lies in place up to `N` elements, and on the heap beyond.
#[derive(Debug)]
pub struct Few<T, const N: usize> {
    few: [T; N],
    len: usize,
    /// All elements, once there are more than `N`.
    many: Vec<T>,
}

impl<T: Default, const N: usize> Few<T, N> {
    /// Without elements.
    pub fn new() -> Few<T, N> {
        Few { few: std::array::from_fn(|_| T::default()), len: 0, many: Vec::new() }
    }

    /// Adds an element at the end.
    pub fn push(&mut self, value: T) {
        if self.many.is_empty() && self.len < N {
            self.few[self.len] = value;
        } else {
            if self.many.is_empty() {
                self.many.extend(self.few.iter_mut().map(std::mem::take));
            }
            self.many.push(value);
        }
        self.len += 1;
    }
}

impl<T: Default, const N: usize> Few<T, N> {
    /// Takes the last element off.
    pub fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        if self.many.is_empty() { Some(std::mem::take(&mut self.few[self.len])) } else { self.many.pop() }
    }
}

impl<T: Default, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Few::new()
    }
}

impl<T: Default, const N: usize> FromIterator<T> for Few<T, N> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut list = Few::new();
        all.into_iter().for_each(|value| list.push(value));
        list
    }
}

impl<T, const N: usize> Few<T, N> {
    /// The elements.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        if self.many.is_empty() { &mut self.few[..self.len] } else { &mut self.many }
    }
}

impl<T, const N: usize> Deref for Few<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        if self.many.is_empty() { &self.few[..self.len] } else { &self.many }
    }
}

impl<T, const N: usize> DerefMut for Few<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_any_number_of_elements_in_their_order() {
        for len in 0..12 {
            let mut list: Few<usize, 4> = (0..len).collect();
            assert!(list.iter().copied().eq(0..len));
            assert_eq!(list.many.is_empty(), len <= 4);
            list.as_mut_slice().iter_mut().for_each(|x| *x += 1);
            assert!(list.iter().copied().eq(1..len + 1));
            let back: Vec<usize> = std::iter::from_fn(|| list.pop()).collect();
            assert!(back.into_iter().rev().eq(1..len + 1) && list.is_empty());
        }
    }
}
