package org.lightningprune.logic

/** Statistics of repeated runs in milliseconds; quantiles are interpolated linearly between the sorted values. */
class Timing(milliseconds: List<Double>) {
    private val sorted = milliseconds.sorted()
    val runs: Int get() = sorted.size
    val median: Double get() = quantile(0.5)
    val fastest: Double get() = sorted[0]

    /** Third quartile minus first. */
    val spread: Double get() = quantile(0.75) - quantile(0.25)

    init {
        if (sorted.isEmpty() || sorted.any { it.isNaN() || it.isInfinite() || it < 0 }) {
            throw ModelException("times: at least one run of 0 ms or more is needed")
        }
    }

    /** The value below which the [share] (0…1) of the runs lie. */
    fun quantile(share: Double): Double {
        val position = share * (sorted.size - 1)
        val low = position.toInt()
        val high = minOf(low + 1, sorted.size - 1)
        return sorted[low] + (position - low) * (sorted[high] - sorted[low])
    }

    companion object {
        /** Time [run] in [rounds] rounds after [warmUp] that do not count. [clock] gives nanoseconds. */
        fun measure(rounds: Int, warmUp: Int = 5, clock: () -> Long = System::nanoTime, run: () -> Unit): Timing {
            repeat(warmUp) { run() }
            return Timing(List(rounds) {
                val start = clock()
                run()
                (clock() - start) / 1e6
            })
        }
    }
}
