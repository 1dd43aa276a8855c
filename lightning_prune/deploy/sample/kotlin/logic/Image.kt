package org.lightningprune.logic

/** A gray picture, row by row, 0 (paper) to 1 (ink). */
class GrayImage(val height: Int, val width: Int, val values: FloatArray = FloatArray(height * width)) {
    init {
        if (height < 1 || width < 1 || values.size != height * width) {
            throw ModelException("${values.size} values make no image of $height x $width")
        }
    }

    /** The same picture at another size, each value the mean over the area that it covers. */
    fun resized(toHeight: Int, toWidth: Int): GrayImage {
        val rows = shares(height, toHeight)
        val columns = shares(width, toWidth)
        val result = GrayImage(toHeight, toWidth)
        for (y in 0 until toHeight) {
            for (x in 0 until toWidth) {
                var sum = 0.0
                for ((row, high) in rows[y]) {
                    for ((column, wide) in columns[x]) sum += high * wide * values[row * width + column]
                }
                result.values[y * toWidth + x] = sum.toFloat()
            }
        }
        return result
    }

    /** For each of [to] cells: which of [from] cells lie under it, with the share of its length that each covers. */
    private fun shares(from: Int, to: Int): List<List<Pair<Int, Double>>> = (0 until to).map { cell ->
        val low = cell.toDouble() * from / to
        val high = (cell + 1.0) * from / to
        (low.toInt() until from).map { Pair(it, minOf(high, it + 1.0) - maxOf(low, it.toDouble())) }
            .takeWhile { it.second > 0 }
            .map { Pair(it.first, it.second / (high - low)) }
    }
}

/** How a picture becomes the input of an image model, (images, channels, height, width) of float32 or uint8. */
class ImageInput(val spec: TensorSpec, private val picture: PictureSpec = PictureSpec()) {
    private val shape = spec.shape.mapIndexed { dimension, size ->
        if (dimension == 0) spec.dynamic[0]?.first ?: size else size
    }
    val height: Int get() = shape[2]
    val width: Int get() = shape[3]

    init {
        val fits = shape.size == 4 && shape[0] > 0 && shape[1] in listOf(1, 3) && shape[2] > 0 && shape[3] > 0
        if (!fits) {
            throw ModelException("input $spec: this screen needs images (1, 1 or 3 channels, height, width)")
        }
        if (spec.dtype != "float32" && spec.dtype != "uint8") {
            throw ModelException("input $spec: this screen makes float32 or uint8")
        }
        if (picture.mean.isNotEmpty() && picture.mean.size != shape[1]) {
            throw ModelException("input $spec: the manifest has the mean of ${picture.mean.size} channels")
        }
    }

    /** The shape that is handed to the program: the smallest batch that it takes. */
    fun shape(): List<Int> = shape

    /** The picture in each channel of each image. */
    fun values(image: GrayImage): FloatArray {
        val small = image.resized(height, width).values
        return values(DoubleArray(shape[1] * small.size) { small[it % small.size] * 255.0 })
    }

    /** The picture upright, resized, fitted and normalised as the manifest says, for each image. */
    fun values(image: ColorImage): FloatArray {
        val fill = if (picture.fit is Fit.Pad) picture.fit.fill.toDouble() else 0.0
        return values(channels(image, placement(image), shape[1], height, width, fill))
    }

    /** Where the picture lies over the input. */
    fun placement(image: ColorImage): Placement = Placement.of(picture.fit, image.height, image.width, height, width)

    /** What the program takes of channels in 0…255: 0…1 or normalised in float32, whole numbers in uint8. */
    private fun values(channels: DoubleArray): FloatArray = FloatArray(shape[0] * channels.size) {
        val at = it % channels.size
        val channel = at / (height * width)
        when {
            spec.dtype == "uint8" -> Math.floor(channels[at] + 0.5).toFloat()
            picture.mean.isEmpty() -> (channels[at] / 255).toFloat()
            else -> ((channels[at] / 255 - picture.mean[channel]) / picture.std[channel]).toFloat()
        }
    }
}
