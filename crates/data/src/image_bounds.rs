//! How large an image is made for a vision model.

/// Bounds of an image's sides in pixels. An image whose longer side exceeds `max` is scaled down
/// to it; then a side shorter than `min` is padded to it. Images are never scaled up.
///
/// Source: SaFeR-Steer `_resize_image_to_bounds` (examples/data_preprocess/safedy_multiturn.py).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageBounds {
    /// Least length of a side. Default 386.
    pub min: u32,
    /// Greatest length of the longer side before padding. Default 512.
    pub max: u32,
}

impl Default for ImageBounds {
    fn default() -> Self {
        Self { min: 386, max: 512 }
    }
}

/// What to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePlan {
    /// Width and height to scale to; the image's own where it fits.
    pub scaled: [u32; 2],
    /// Pixels to add at the left and at the top: half of what is missing, rounded down.
    pub offset: [u32; 2],
    /// Width and height in the end.
    pub padded: [u32; 2],
}

impl ImageBounds {
    /// The plan for an image of that size. Scaled sides are rounded, of two equally near the even
    /// one is taken, and are at least 1.
    #[must_use]
    pub fn plan(&self, width: u32, height: u32) -> ImagePlan {
        let longer = width.max(height);
        let scaled = if longer > self.max {
            let scale = f64::from(self.max) / f64::from(longer);
            [width, height].map(|side| ((f64::from(side) * scale).round_ties_even() as u32).max(1))
        } else {
            [width, height]
        };
        ImagePlan {
            scaled,
            offset: scaled.map(|side| self.min.saturating_sub(side) / 2),
            padded: scaled.map(|side| side.max(self.min)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_image_is_scaled_and_a_small_side_padded() {
        // 512 / 1024 = 1/2: 512 x 384, then 2 rows short of 386, one of them above.
        let plan = ImageBounds::default().plan(1024, 768);
        assert_eq!(plan, ImagePlan { scaled: [512, 384], offset: [0, 1], padded: [512, 386] });
        // Never scaled up; 286 columns and rows short.
        let plan = ImageBounds::default().plan(100, 101);
        assert_eq!(plan, ImagePlan { scaled: [100, 101], offset: [143, 142], padded: [386, 386] });
    }

    #[test]
    fn halves_go_to_the_even_side_and_no_side_vanishes() {
        // 5 * 4/8 = 2.5 to 2; 7 * 4/8 = 3.5 to 4.
        let bounds = ImageBounds { min: 0, max: 4 };
        assert_eq!(bounds.plan(8, 5).padded, [4, 2]);
        assert_eq!(bounds.plan(8, 7).padded, [4, 4]);
        // 1 * 512/10000 = 0.05 to 0, so 1.
        assert_eq!(ImageBounds { min: 0, max: 512 }.plan(10_000, 1).padded, [512, 1]);
    }
}
