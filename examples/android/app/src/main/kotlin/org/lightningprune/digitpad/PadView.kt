package org.lightningprune.digitpad

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.view.MotionEvent
import android.view.View
import org.lightningprune.logic.Drawing
import org.lightningprune.logic.GrayImage

/** A square of paper; each stroke that ends hands its drawing to [drawn]. */
class PadView(context: Context, private val drawn: (GrayImage) -> Unit) : View(context) {
    private val drawing = Drawing()
    private val paint = Paint(Paint.FILTER_BITMAP_FLAG)
    private var lastX = 0.0
    private var lastY = 0.0

    fun clear() {
        drawing.clear()
        invalidate()
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val width = View.MeasureSpec.getSize(widthMeasureSpec)
        val height = View.MeasureSpec.getSize(heightMeasureSpec)
        val side = if (height in 1 until width) height else width
        setMeasuredDimension(side, side)
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        val x = event.x.toDouble() / width
        val y = event.y.toDouble() / height
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> drawing.line(x, y, x, y)
            MotionEvent.ACTION_MOVE -> drawing.line(lastX, lastY, x, y)
            MotionEvent.ACTION_UP -> {
                performClick()
                if (!drawing.isEmpty) drawn(drawing.framed())
            }
        }
        lastX = x
        lastY = y
        invalidate()
        return true
    }

    override fun performClick(): Boolean = super.performClick()

    override fun onDraw(canvas: Canvas) {
        val size = drawing.size
        val colors = IntArray(size * size) {
            val gray = 255 - (drawing.image.values[it] * 255).toInt()
            (0xff shl 24) or (gray shl 16) or (gray shl 8) or gray
        }
        val bitmap = Bitmap.createBitmap(colors, size, size, Bitmap.Config.ARGB_8888)
        canvas.drawBitmap(bitmap, null, Rect(0, 0, width, height), paint)
    }
}
