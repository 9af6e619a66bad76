//! Walking a version's tree down from its root: ask only for nodes that no seed's tree has at the same place.
//!
//! Plain state, no IO but the tree files: [`Walk::next_request`] says what to ask, [`Walk::take`] takes an answer
//! and proves it against the parent's id. One level is asked for at a time, in groups, many groups at once, so
//! that a walk costs as many round trips as the tree has levels.

use std::collections::VecDeque;

use goldwire_store::{ChunkId, FANOUT, Root, TreeFile, node_id};

use super::seeds::Seed;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, Request};

/// Nodes asked for in one request: 32 of 8 KiB each, small enough for progress on a slow connection.
const NODES_PER_REQUEST: usize = 32;

/// A walk under way. The tree at the target fills as answers come.
pub(crate) struct Walk {
    tree: TreeFile,
    root: Root,
    seeds: Vec<Seed>,
    /// The level whose nodes are asked for; the tree's height for the node above the top.
    level: usize,
    /// Nodes of `level` still to ask for.
    queue: VecDeque<u64>,
    /// Nodes of `level` asked for.
    asked: usize,
    /// Nodes of `level - 1` to ask for next.
    below: VecDeque<u64>,
}

impl Walk {
    /// A walk that will fill `tree` with the version of `root`.
    pub(crate) fn new(tree: TreeFile, root: Root, seeds: Vec<Seed>) -> Self {
        let level = tree.shape().levels();
        Self { tree, root, seeds, level, queue: VecDeque::from([0]), asked: 0, below: VecDeque::new() }
    }

    /// The tree, and the seeds that the walk took subtrees from.
    pub(crate) fn into_parts(self) -> (TreeFile, Vec<Seed>) {
        (self.tree, self.seeds)
    }

    /// Whether the tree is wholly known.
    pub(crate) fn is_done(&self) -> bool {
        self.level == 0 || (self.queue.is_empty() && self.asked == 0 && self.below.is_empty())
    }

    /// What to ask next; nothing while answers must come first. The second number is the answer's length.
    pub(crate) fn next_request(&mut self) -> Option<(Request, usize)> {
        if self.queue.is_empty() && self.asked == 0 && self.level > 1 {
            self.level -= 1;
            self.queue = std::mem::take(&mut self.below);
        }
        let count = self.queue.len().min(NODES_PER_REQUEST);
        if count == 0 {
            return None;
        }
        let indices: Vec<u64> = self.queue.drain(..count).collect();
        self.asked += count;
        let length = indices.iter().map(|index| self.children_length(*index)).sum();
        Some((Request::Nodes { level: self.level as u8, indices }, length))
    }

    fn children_length(&self, index: u64) -> usize {
        let children = self.tree.shape().children(self.level, index);
        (children.end - children.start) as usize * 32
    }

    /// Takes the children of `indices`, checked to be as long as was asked for.
    pub(crate) fn take(&mut self, indices: &[u64], mut content: &[u8]) -> Result<()> {
        self.asked -= indices.len();
        for &index in indices {
            let (children, rest) = content.split_at_checked(self.children_length(index)).unwrap_or_default();
            content = rest;
            let (children, _) = children.as_chunks::<32>();
            let children: Vec<ChunkId> = children.iter().map(|id| ChunkId(*id)).collect();
            self.take_node(index, &children)?;
        }
        Ok(())
    }

    fn take_node(&mut self, index: u64, children: &[ChunkId]) -> Result<()> {
        let shape = self.tree.shape();
        let is_above_top = self.level == shape.levels();
        let is_proven = match children {
            [top] if is_above_top => shape.root(top) == self.root,
            _ => !is_above_top && node_id(self.level, children) == self.tree.id(self.level, index)?,
        };
        if !is_proven {
            return Err(Failure::new(
                FailureKind::Other,
                format!(
                    "the source's node {index} of level {} does not have the digest it should have",
                    self.level
                ),
            )
            .hint("delete the .goldwire folder beside the source image and try again"));
        }
        let first = index * FANOUT;
        self.tree.set_ids(self.level - 1, first, children)?;
        if self.level > 1 {
            for (child, id) in (first..).zip(children).filter(|(_, id)| !id.is_zero()) {
                if !self.copy_from_seeds(self.level - 1, child, id)? {
                    self.below.push_back(child);
                }
            }
        }
        Ok(())
    }

    /// Takes a whole subtree from a seed's tree that has the same node at the same place.
    fn copy_from_seeds(&self, level: usize, index: u64, id: &ChunkId) -> Result<bool> {
        for seed in self.seeds.iter().map(|seed| &seed.tree) {
            let is_same = index < seed.shape().count(level)
                && seed.shape().children(level, index) == self.tree.shape().children(level, index)
                && seed.id(level, index)? == *id;
            if is_same && copy_subtree(seed, &self.tree, level, index, id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Copies everything below a node, proving each node; false if the seed's tree is damaged there.
fn copy_subtree(seed: &TreeFile, tree: &TreeFile, level: usize, index: u64, id: &ChunkId) -> Result<bool> {
    let range = tree.shape().children(level, index);
    if seed.shape().children(level, index) != range {
        return Ok(false);
    }
    let children = seed.ids(level - 1, range.clone())?;
    if node_id(level, &children) != *id {
        return Ok(false);
    }
    tree.set_ids(level - 1, range.start, &children)?;
    if level > 1 {
        for (child, id) in range.zip(&children).filter(|(_, id)| !id.is_zero()) {
            if !copy_subtree(seed, tree, level - 1, child, id)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
