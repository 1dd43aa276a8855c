package org.lightningprune.logic

/** What a finger draws: lines of ink on paper, framed before the model sees them. */
class Drawing(val size: Int = 64, private val radius: Double = 2.5) {
    val image = GrayImage(size, size)
    val isEmpty: Boolean get() = image.values.all { it == 0f }

    fun clear() = image.values.fill(0f)

    /** Ink from one point to another, in [0, 1] of width and height; what lies outside is left out. */
    fun line(fromX: Double, fromY: Double, toX: Double, toY: Double) {
        for (y in 0 until size) {
            for (x in 0 until size) {
                val gap = distance(x + 0.5, y + 0.5, fromX * size, fromY * size, toX * size, toY * size)
                val ink = (radius + 0.5 - gap).coerceIn(0.0, 1.0).toFloat()
                if (ink > image.values[y * size + x]) image.values[y * size + x] = ink
            }
        }
    }

    private fun distance(x: Double, y: Double, fromX: Double, fromY: Double, toX: Double, toY: Double): Double {
        val alongX = toX - fromX
        val alongY = toY - fromY
        val square = alongX * alongX + alongY * alongY
        val share = if (square == 0.0) 0.0 else ((x - fromX) * alongX + (y - fromY) * alongY) / square
        val nearest = share.coerceIn(0.0, 1.0)
        return Math.hypot(x - fromX - nearest * alongX, y - fromY - nearest * alongY)
    }

    /** The ink alone, in the middle of the smallest square that holds it; empty paper as it is. */
    fun framed(): GrayImage = framed(image)

    companion object {
        fun framed(image: GrayImage): GrayImage {
            val inked = image.values.indices.filter { image.values[it] > 0.05f }
            if (inked.isEmpty()) return image
            val top = inked[0] / image.width
            val left = inked.map { it % image.width }.sorted()[0]
            val height = inked[inked.size - 1] / image.width - top + 1
            val width = inked.map { it % image.width }.sorted()[inked.size - 1] - left + 1
            val side = maxOf(height, width)
            val result = GrayImage(side, side)
            for (y in 0 until height) {
                for (x in 0 until width) {
                    val at = (y + (side - height) / 2) * side + x + (side - width) / 2
                    result.values[at] = image.values[(top + y) * image.width + left + x]
                }
            }
            return result
        }
    }
}
