package org.lightningprune.digitpad

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.RectF
import android.view.View
import org.lightningprune.logic.Area
import org.lightningprune.logic.Reading

/** Boxes and regions over a picture that is shown whole, in the middle of this view. */
class ReadingView(context: Context) : View(context) {
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG)
    private var reading: Reading? = null
    private var pictureWidth = 1
    private var pictureHeight = 1

    /** What was read in an upright picture of [width] x [height]. */
    fun show(reading: Reading, width: Int, height: Int) {
        this.reading = reading
        pictureWidth = width
        pictureHeight = height
        invalidate()
    }

    override fun onDraw(canvas: Canvas) {
        when (val shown = reading) {
            is Reading.Boxes -> for (box in shown.boxes) {
                val place = placed(box.area)
                paint.color = color(box.index, 255)
                paint.style = Paint.Style.STROKE
                paint.strokeWidth = width / 120f
                canvas.drawRect(place, paint)
                paint.style = Paint.Style.FILL
                paint.textSize = width / 20f
                val name = "%s %.0f %%".format(box.label, 100 * box.confidence)
                val line = maxOf(place.top - width / 80f, paint.textSize)
                paint.color = Color.BLACK // a shadow, so that it is read on a light picture too
                canvas.drawText(name, place.left + width / 320f, line + width / 320f, paint)
                paint.color = color(box.index, 255)
                canvas.drawText(name, place.left, line, paint)
            }
            is Reading.Regions -> {
                // the first class is the background, as data sets have it
                val colors = IntArray(shown.classes.size) { shown.classes[it].let { c -> if (c == 0) 0 else color(c, 128) } }
                val cells = Bitmap.createBitmap(colors, shown.columns, shown.rows, Bitmap.Config.ARGB_8888)
                canvas.save()
                canvas.clipRect(placed(Area(0.0, 0.0, 1.0, 1.0)))
                canvas.drawBitmap(cells, null, placed(shown.area), paint)
                canvas.restore()
            }
            else -> Unit
        }
    }

    private fun placed(area: Area): RectF {
        val scale = minOf(width.toDouble() / pictureWidth, height.toDouble() / pictureHeight)
        val wide = pictureWidth * scale
        val tall = pictureHeight * scale
        val left = (width - wide) / 2
        val top = (height - tall) / 2
        return RectF(
            (left + area.left * wide).toFloat(), (top + area.top * tall).toFloat(),
            (left + area.right * wide).toFloat(), (top + area.bottom * tall).toFloat()
        )
    }

    /** Neighbours far apart on the wheel of hues, by the golden angle. */
    private fun color(index: Int, alpha: Int): Int =
        Color.HSVToColor(alpha, floatArrayOf(index * 137.5f % 360, 0.85f, 0.95f))
}
