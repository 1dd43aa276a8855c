package org.lightningprune.logic

/**
 * A colour picture as a camera gives it: pixels 0xAARRGGBB row by row, [rawHeight] rows of [rawWidth].
 *
 * [rotation]: the degrees clockwise that turn it upright, 0, 90, 180 or 270; [height] and [width] are those of the
 * upright picture.
 */
class ColorImage(val rawHeight: Int, val rawWidth: Int, val pixels: IntArray, val rotation: Int = 0) {
    val height: Int get() = if (rotation % 180 == 0) rawHeight else rawWidth
    val width: Int get() = if (rotation % 180 == 0) rawWidth else rawHeight

    init {
        if (rawHeight < 1 || rawWidth < 1 || pixels.size != rawHeight * rawWidth) {
            throw ModelException("${pixels.size} pixels make no picture of $rawHeight x $rawWidth")
        }
        if (rotation !in listOf(0, 90, 180, 270)) throw ModelException("a picture is not turned by $rotation degrees")
    }

    /** A pixel of the upright picture. */
    fun pixel(y: Int, x: Int): Int = pixels[when (rotation) {
        0 -> y * rawWidth + x
        90 -> (rawHeight - 1 - x) * rawWidth + y
        180 -> (rawHeight - 1 - y) * rawWidth + rawWidth - 1 - x
        else -> x * rawWidth + rawWidth - 1 - y
    }]
}

/** How a picture is brought to the height and width of an input. */
sealed class Fit {
    /** The middle of it, resized to a shorter side of [resize]; null: it just covers the input. */
    data class Crop(val resize: Int?) : Fit()

    /** All of it, whatever becomes of its proportions. */
    object Stretch : Fit()

    /** All of it in its proportions, within a border of [fill], 0…255. */
    data class Pad(val fill: Int) : Fit()
}

/** What the manifest says of pictures; [mean] and [std] by channel, of values in 0…1, or empty. */
data class PictureSpec(
    val fit: Fit = Fit.Crop(null),
    val mean: List<Double> = emptyList(),
    val std: List<Double> = emptyList()
) {
    init {
        if (mean.size != std.size || std.any { it <= 0 }) {
            throw ModelException("the manifest is incomplete: mean $mean and std $std of pictures")
        }
    }
}

/** Where a picture, resized to [height] x [width], lies over an input: its corner at [top], [left], which crops below 0. */
data class Placement(val top: Int, val left: Int, val height: Int, val width: Int) {
    /** Where a rectangle in pixels of the input lies on the picture. */
    fun area(left: Double, top: Double, right: Double, bottom: Double): Area = Area(
        (left - this.left) / width, (top - this.top) / height, (right - this.left) / width, (bottom - this.top) / height
    )

    companion object {
        /** The placement of a picture of [height] x [width] over an input of [rows] x [columns]. */
        fun of(fit: Fit, height: Int, width: Int, rows: Int, columns: Int): Placement = when (fit) {
            is Fit.Stretch -> Placement(0, 0, rows, columns)
            is Fit.Crop -> {
                // in whole numbers, as torchvision rounds: the shorter side as said, the other one rounded down
                val byHeight = if (fit.resize == null) product(rows, width) >= product(columns, height) else height <= width
                val side = fit.resize ?: if (byHeight) rows else columns
                val tall = if (byHeight) side else (product(side, height) / width).toInt()
                val wide = if (byHeight) (product(side, width) / height).toInt() else side
                Placement(-half(tall - rows), -half(wide - columns), tall, wide)
            }
            is Fit.Pad -> {
                val byHeight = product(rows, width) <= product(columns, height)
                val tall = if (byHeight) rows else nearest(product(columns, height), width)
                val wide = if (byHeight) nearest(product(rows, width), height) else columns
                Placement((rows - tall) / 2, (columns - wide) / 2, tall, wide)
            }
        }

        private fun product(a: Int, b: Int): Long = a.toLong() * b

        /** Half of a size, halves to the even number. */
        private fun half(size: Int): Int = Math.rint(size / 2.0).toInt()

        private fun nearest(size: Long, by: Int): Int = maxOf(1, Math.rint(size.toDouble() / by).toInt())
    }
}

/** A picture at another size as torchvision resizes it: bilinear, and with antialiasing where it becomes smaller. */
internal class Resampling(from: Int, to: Int, start: Int, count: Int) {
    /** Of each cell from [start] on: the first pixel below it, and the weights of that one and the following ones. */
    val first = IntArray(count)
    val weights: Array<DoubleArray>

    init {
        val scale = from.toDouble() / to
        val reach = maxOf(scale, 1.0)
        weights = Array(count) { cell ->
            val center = (start + cell + 0.5) * scale
            val low = maxOf(0, (center - reach + 0.5).toInt())
            val high = minOf(from, (center + reach + 0.5).toInt())
            val heights = DoubleArray(high - low) { maxOf(0.0, 1 - Math.abs((low + it + 0.5 - center) / reach)) }
            val sum = heights.sum()
            first[cell] = low
            DoubleArray(heights.size) { heights[it] / sum }
        }
    }
}

/** The channels of a picture over an input of [rows] x [columns], 0…255, channel by channel; the border is [fill]. */
internal fun channels(image: ColorImage, place: Placement, count: Int, rows: Int, columns: Int, fill: Double): DoubleArray {
    val top = maxOf(0, place.top)
    val left = maxOf(0, place.left)
    val tall = minOf(rows, place.top + place.height) - top
    val wide = minOf(columns, place.left + place.width) - left
    val vertical = Resampling(image.height, place.height, top - place.top, tall)
    val horizontal = Resampling(image.width, place.width, left - place.left, wide)
    val result = DoubleArray(count * rows * columns) { fill }
    // each row of the picture is narrowed once, however many rows of the input it takes part in
    val narrowed = arrayOfNulls<DoubleArray>(image.height)
    for (y in 0 until tall) {
        val sums = DoubleArray(count * wide)
        for ((i, weight) in vertical.weights[y].withIndex()) {
            val row = vertical.first[y] + i
            val values = narrowed[row] ?: narrowedRow(image, row, horizontal, count).also { narrowed[row] = it }
            for (at in sums.indices) sums[at] += weight * values[at]
        }
        for (c in 0 until count) {
            sums.copyInto(result, (c * rows + top + y) * columns + left, c * wide, (c + 1) * wide)
        }
    }
    return result
}

private fun narrowedRow(image: ColorImage, row: Int, horizontal: Resampling, count: Int): DoubleArray {
    val wide = horizontal.first.size
    val values = DoubleArray(count * wide)
    for (x in 0 until wide) {
        var red = 0.0
        var green = 0.0
        var blue = 0.0
        for ((i, weight) in horizontal.weights[x].withIndex()) {
            val pixel = image.pixel(row, horizontal.first[x] + i)
            red += weight * (pixel shr 16 and 0xff)
            green += weight * (pixel shr 8 and 0xff)
            blue += weight * (pixel and 0xff)
        }
        if (count == 1) {
            values[x] = 0.299 * red + 0.587 * green + 0.114 * blue
        } else {
            values[x] = red
            values[wide + x] = green
            values[2 * wide + x] = blue
        }
    }
    return values
}
