//! The CPU backend: plain vectors, rayon, order-fixed sums.

use std::convert::Infallible;

use super::{Element, Memory, Record, check_room};
use crate::error::{Error, Result};

/// The host: buffers are `Vec`s, views are slices, work runs on rayon's current pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu;

impl Memory for Cpu {
    type Buffer<T: Element> = Vec<T>;
    type View<'a, T: Element> = &'a [T];
    type ViewMut<'a, T: Element> = &'a mut [T];

    fn zeros<T: Element>(&self, len: usize, what: &str) -> Result<Vec<T>> {
        let mut buffer = Vec::new();
        buffer
            .try_reserve_exact(len)
            .map_err(|_| Error::OutOfMemory { what: what.to_string(), bytes: len as u128 * size_of::<T>() as u128 })?;
        buffer.resize(len, T::default());
        Ok(buffer)
    }

    fn len<T: Element>(buffer: &Vec<T>) -> usize {
        buffer.len()
    }

    fn view<T: Element>(buffer: &Vec<T>, len: usize) -> &[T] {
        &buffer[..len]
    }

    fn view_mut<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
        &mut buffer[..len]
    }

    fn view_len<T: Element>(view: &&[T]) -> usize {
        view.len()
    }

    fn view_mut_len<T: Element>(view: &&mut [T]) -> usize {
        view.len()
    }

    fn upload<T: Element>(&self, from: &[T], to: &mut Vec<T>) -> Result<()> {
        check_room(from.len(), to.len())?;
        to[..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn download<T: Element>(&self, from: &Vec<T>, to: &mut [T]) -> Result<()> {
        check_room(to.len(), from.len())?;
        to.copy_from_slice(&from[..to.len()]);
        Ok(())
    }
}

impl Record for Cpu {
    type Recording = Infallible;

    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, recording: &Infallible, _: u64) -> Result<bool> {
        match *recording {}
    }
}
