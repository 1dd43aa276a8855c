package org.lightningprune.logic

/**
 * Cuts what a microphone gives, in buffers of any size, into frames of [window] samples, each [hop] after the one before.
 *
 * What does not fill a frame is kept for the next call. Not for several threads at once.
 */
class Framing(val window: Int, val hop: Int = window) {
    private val kept = FloatArray(maxOf(window, 0))
    private var filled = 0

    init {
        if (window < 1 || hop !in 1..window) {
            throw ModelException("frames of $window samples every $hop: a window has 1 or more, a hop 1…window")
        }
    }

    /** The frames that [count] samples of 16 bits complete, in [-1, 1). */
    fun push(samples: ShortArray, count: Int = samples.size): List<FloatArray> = pushed(samples.size, count) {
        samples[it] / 32768f
    }

    /** The frames that [count] samples complete, as they are. */
    fun push(samples: FloatArray, count: Int = samples.size): List<FloatArray> = pushed(samples.size, count) { samples[it] }

    /** Forgets what was kept: after a pause the next frame begins with the next sample. */
    fun reset() {
        filled = 0
    }

    private fun pushed(size: Int, count: Int, sample: (Int) -> Float): List<FloatArray> {
        // AudioRecord.read gives a negative number for an error
        if (count !in 0..size) throw ModelException("$count samples of a buffer of $size: the microphone gave an error")
        val frames = ArrayList<FloatArray>()
        for (i in 0 until count) {
            kept[filled++] = sample(i)
            if (filled == window) {
                frames.add(kept.copyOf())
                kept.copyInto(kept, 0, hop, window)
                filled = window - hop
            }
        }
        return frames
    }
}
