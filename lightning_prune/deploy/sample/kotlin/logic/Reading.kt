package org.lightningprune.logic

/** A rectangle over the upright picture, in shares of its width and height; it may reach beyond 0…1. */
data class Area(val left: Double, val top: Double, val right: Double, val bottom: Double) {
    val size: Double get() = maxOf(0.0, right - left) * maxOf(0.0, bottom - top)

    /** The share of both together that lies in both. */
    fun overlap(other: Area): Double {
        val both = Area(maxOf(left, other.left), maxOf(top, other.top), minOf(right, other.right), minOf(bottom, other.bottom))
        val together = size + other.size - both.size
        return if (together > 0) both.size / together else 0.0
    }
}

/** A thing in the picture: where, what, and how sure. */
data class Box(val area: Area, val index: Int, val label: String, val confidence: Float)

/** What a program says of a picture. */
sealed class Reading {
    /** Its class. */
    data class Classes(val answer: Answer) : Reading()

    /** The things in it, the surest first. */
    data class Boxes(val boxes: List<Box>) : Reading()

    /** The class of each cell of [rows] x [columns], row by row, which cover [area]. */
    class Regions(val rows: Int, val columns: Int, val classes: IntArray, val area: Area) : Reading()

    companion object {
        /** Below this a thing is left out. */
        const val CONFIDENCE = 0.25f

        /** Of two things of a class that overlap by more, the less sure one is left out. */
        const val OVERLAP = 0.45

        /**
         * Read the first output by its shape, for a picture at [place] over an input of [rows] x [columns].
         *
         * (N, classes): scores. (N, classes, height, width): scores of each cell; one class is there above 0.
         * (N, 4 + labels, things): middle x and y, width and height in pixels of the input, then a share per class, as
         * YOLO's heads give. (N, things, 6): left, top, right and bottom in these pixels, share, class, as heads give that
         * choose among the things themselves.
         */
        fun of(
            output: FloatArray, spec: TensorSpec, labels: List<String>, place: Placement, rows: Int, columns: Int
        ): Reading {
            val shape = spec.shape
            val count = shape.drop(1).fold(1) { product, size -> product * size }
            if (spec.dtype != "float32" || output.size < count) {
                throw ModelException("output $spec: ${output.size} values are no scores of a picture in float32")
            }
            return when {
                shape.size == 2 -> Classes(Scores.answer(output, spec, labels))
                shape.size == 4 && count > 0 -> Regions(
                    shape[2], shape[3], cells(output, shape[1], shape[2] * shape[3]),
                    place.area(0.0, 0.0, columns.toDouble(), rows.toDouble())
                )
                shape.size == 3 && labels.isNotEmpty() && shape[1] == 4 + labels.size ->
                    Boxes(chosen(centered(output, shape[2], labels, place)))
                shape.size == 3 && shape[2] == 6 -> Boxes(cornered(output, shape[1], labels, place))
                else -> throw ModelException("output $spec: this screen shows classes, regions and boxes")
            }
        }

        private fun cells(output: FloatArray, classes: Int, cells: Int): IntArray = IntArray(cells) { cell ->
            var best = 0
            for (c in 1 until classes) if (output[c * cells + cell] > output[best * cells + cell]) best = c
            if (classes > 1) best else if (output[cell] > 0) 1 else 0
        }

        private fun centered(output: FloatArray, count: Int, labels: List<String>, place: Placement): List<Box> {
            val boxes = ArrayList<Box>()
            for (i in 0 until count) {
                var best = 0
                for (c in labels.indices) if (output[(4 + c) * count + i] > output[(4 + best) * count + i]) best = c
                val confidence = output[(4 + best) * count + i]
                if (confidence < CONFIDENCE) continue
                val (x, y, wide, tall) = List(4) { output[it * count + i].toDouble() }
                val area = place.area(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2)
                boxes.add(Box(area, best, labels[best], confidence))
            }
            return boxes
        }

        private fun cornered(output: FloatArray, count: Int, labels: List<String>, place: Placement): List<Box> =
            (0 until count).filter { output[it * 6 + 4] >= CONFIDENCE }.map { i ->
                val (left, top, right, bottom) = List(4) { output[i * 6 + it].toDouble() }
                val index = output[i * 6 + 5].toInt()
                Box(place.area(left, top, right, bottom), index, labels.getOrElse(index) { "$it" }, output[i * 6 + 4])
            }.sortedByDescending { it.confidence }

        /** The surest first, each but those that a surer one of their class covers. */
        private fun chosen(boxes: List<Box>): List<Box> {
            val kept = ArrayList<Box>()
            for (box in boxes.sortedByDescending { it.confidence }) {
                if (kept.none { it.index == box.index && it.area.overlap(box.area) > OVERLAP }) kept.add(box)
            }
            return kept
        }
    }
}
